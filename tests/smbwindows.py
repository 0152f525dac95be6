"""What Windows asks of an SMB server when it attaches a disk, asked through smbprotocol: SMB 3.1.1, signed.

Not for: expectations. A `Client` is one connection with one login; `opened` opens as vhdmp.sys does (read access, share
mode read, no buffering, a lease and a durable handle). Units: bytes. Source: facts/samba-and-windows.md section 2;
MS-SMB2 2.2.13.2 for the create contexts, MS-FSCC 2.3.48, 2.4 and 2.5 for the structures.
"""

import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

import pytest

pytest.importorskip("smbprotocol", reason="smbprotocol is not installed (pip install smbprotocol)")

from smbprotocol.connection import Connection, Dialects
from smbprotocol.create_contexts import (
    CreateContextName,
    LeaseState,
    SMB2CreateContextRequest,
    SMB2CreateDurableHandleReconnectV2,
    SMB2CreateDurableHandleRequestV2,
    SMB2CreateDurableHandleResponseV2,
    SMB2CreateQueryOnDiskIDResponse,
    SMB2CreateRequestLeaseV2,
    SMB2CreateResponseLeaseV2,
)
from smbprotocol.exceptions import SMBException, SMBResponseException
from smbprotocol.ioctl import CtlCode, IOCTLFlags, SMB2IOCTLRequest, SMB2IOCTLResponse
from smbprotocol.open import (
    CreateDisposition,
    CreateOptions,
    FilePipePrinterAccessMask,
    ImpersonationLevel,
    Open,
    RequestedOplockLevel,
    ShareAccess,
    SMB2QueryInfoRequest,
    SMB2QueryInfoResponse,
)
from smbprotocol.session import Session
from smbprotocol.tree import TreeConnect

from smbd import PASSWORD, USER, Share

NORMAL, ARCHIVE = 0x80, 0x20
FORBIDDEN = {"SPARSE": 0x200, "COMPRESSED": 0x800, "ENCRYPTED": 0x4000}
"""Attributes of a file that Windows does not attach (MS-HVRS 2.2.2, C0008)."""
GENERIC_READ = FilePipePrinterAccessMask.GENERIC_READ
GENERIC_WRITE = FilePipePrinterAccessMask.GENERIC_WRITE
WRITES = {
    "write": FilePipePrinterAccessMask.FILE_WRITE_DATA,
    "append": FilePipePrinterAccessMask.FILE_APPEND_DATA,
    "generic": GENERIC_WRITE,
    # What vhdmp.sys asks for when a disk is attached for writing.
    "read and write": 0x12019F,
    "attributes": FilePipePrinterAccessMask.FILE_WRITE_ATTRIBUTES,
    "delete": FilePipePrinterAccessMask.DELETE,
}
READ_SHARED = ShareAccess.FILE_SHARE_READ
RH = LeaseState.SMB2_LEASE_READ_CACHING | LeaseState.SMB2_LEASE_HANDLE_CACHING
SMB_STATUS_OBJECT_NAME_NOT_FOUND = 0xC0000034
SMB_STATUS_ACCESS_DENIED = 0xC0000022
Failure = SMBException
StatusFailure = SMBResponseException


@dataclass(slots=True)
class File:
    """A file that is open on the server, and what the server granted."""

    client: "Client"
    handle: Any
    leased: int = 0
    durable: bool = False
    disk_id: int = 0
    lease_key: bytes = b""
    create_guid: uuid.UUID | None = None

    @property
    def attributes(self) -> int:
        return int(self.handle.file_attributes)

    @property
    def length(self) -> int:
        return int(self.handle.end_of_file)

    @property
    def allocated(self) -> int:
        return int(self.handle.allocation_size)

    def read(self, offset: int, length: int) -> bytes:
        """One read request, past the client's cache."""
        return bytes(self.handle.read(offset, length, unbuffered=True))

    def write(self, offset: int, data: bytes) -> None:
        """Write requests of at most 64 KiB each."""
        for at in range(0, len(data), 65536):
            self.handle.write(data[at : at + 65536], offset + at)

    def flush(self) -> None:
        """FLUSH: on disk when it is answered."""
        self.handle.flush()

    def close(self) -> None:
        self.handle.close()

    def basic_attributes(self) -> int:
        """FileBasicInformation: four times, then the attributes."""
        return int(struct.unpack("<4QI", self._query(1, 4, 40)[:36])[4])

    def network_open(self) -> tuple[int, int, int]:
        """FileNetworkOpenInformation: allocation size, end of file, attributes."""
        _, _, _, _, allocated, end, attributes = struct.unpack("<4Q2QI", self._query(1, 34, 56)[:52])
        return allocated, end, attributes

    def standard(self) -> tuple[int, int]:
        """FileStandardInformation: allocation size, end of file."""
        allocated, end = struct.unpack("<2Q", self._query(1, 5, 24)[:16])
        return allocated, end

    def internal_id(self) -> int:
        """FileInternalInformation: what the client knows the file by."""
        return int.from_bytes(self._query(1, 6, 8), "little")

    def sector_sizes(self) -> tuple[int, ...]:
        """FileFsSectorSizeInformation: logical, physical for atomicity, for performance, effective."""
        return struct.unpack("<4I", self._query(2, 11, 28)[:16])

    def volume_attributes(self) -> int:
        """FileFsAttributeInformation."""
        return int.from_bytes(self._query(2, 5, 64)[:4], "little")

    def allocated_ranges(self) -> list[tuple[int, int]]:
        """FSCTL_QUERY_ALLOCATED_RANGES over the whole file: (offset, length)."""
        request = SMB2IOCTLRequest()
        request["ctl_code"] = CtlCode.FSCTL_QUERY_ALLOCATED_RANGES
        request["file_id"] = self.handle.file_id
        request["max_output_response"] = 65536
        request["flags"] = IOCTLFlags.SMB2_0_IOCTL_IS_FSCTL
        request["buffer"] = struct.pack("<2Q", 0, self.length)
        response = SMB2IOCTLResponse()
        response.unpack(self.client.send(request))
        raw = bytes(response["buffer"].get_value())
        return [struct.unpack_from("<2Q", raw, at) for at in range(0, len(raw), 16)]

    def set_sparse(self) -> None:
        """FSCTL_SET_SPARSE, as a client does that copies a sparse file."""
        request = SMB2IOCTLRequest()
        request["ctl_code"] = CtlCode.FSCTL_SET_SPARSE
        request["file_id"] = self.handle.file_id
        request["flags"] = IOCTLFlags.SMB2_0_IOCTL_IS_FSCTL
        self.client.send(request)

    def _query(self, kind: int, information_class: int, length: int) -> bytes:
        request = SMB2QueryInfoRequest()
        request["info_type"] = kind
        request["file_info_class"] = information_class
        request["output_buffer_length"] = length
        request["file_id"] = self.handle.file_id
        response = SMB2QueryInfoResponse()
        response.unpack(self.client.send(request))
        return bytes(response["buffer"].get_value())


class Client:
    """One connection, one login, one tree. `guid` is what the server recognizes a client by after an interruption."""

    def __init__(self, share: Share, *, user: str = USER, password: str = PASSWORD, guid: uuid.UUID | None = None) -> None:
        self.share = share
        self.guid = guid or uuid.uuid4()
        self.connection = Connection(self.guid, "127.0.0.1", share.port, require_signing=True)
        self.connection.connect(Dialects.SMB_3_1_1, timeout=20)
        try:
            session = Session(self.connection, user, password, require_encryption=False, auth_protocol="ntlm")
            session.connect()
            self.tree = TreeConnect(session, rf"\\127.0.0.1\{share.name}")
            self.tree.connect(require_secure_negotiate=False)
        except BaseException:
            self.connection.disconnect(close=False)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):  # cut already, or a file of a dead mount
            self.connection.disconnect(close=True, timeout=10)

    @property
    def signing_required(self) -> bool:
        return bool(self.tree.session.signing_required)

    def cut(self) -> None:
        """The network goes away: the connection ends without any goodbye."""
        self.connection.transport.close()

    def send(self, request: Any) -> bytes:
        sent = self.connection.send(request, self.tree.session.session_id, self.tree.tree_connect_id)
        return bytes(self.connection.receive(sent, timeout=30)["data"].get_value())

    def open(
        self,
        path: str,
        *,
        access: int = GENERIC_READ,
        share: int = READ_SHARED,
        lease: int = RH,
        options: int = CreateOptions.FILE_NON_DIRECTORY_FILE | CreateOptions.FILE_NO_INTERMEDIATE_BUFFERING,
        again: File | None = None,
    ) -> File:
        """Open a file of the share (separated by `/`) as Windows does; `again` is the handle to get back after a cut."""
        key = again.lease_key if again else uuid.uuid4().bytes
        guid = (again.create_guid if again else None) or uuid.uuid4()
        if again is None:
            durable: Any = SMB2CreateDurableHandleRequestV2()
            durable["timeout"] = 60_000
        else:
            durable = SMB2CreateDurableHandleReconnectV2()
            durable["file_id"] = again.handle.file_id
        durable["create_guid"] = guid
        wanted = SMB2CreateRequestLeaseV2()
        wanted["lease_key"] = key
        wanted["lease_state"] = lease
        wanted["parent_lease_key"] = bytes(16)
        wanted["epoch"] = bytes(2)
        contexts = [(durable.NAME, durable), (wanted.NAME, wanted)]
        requests = []
        for name, content in contexts:
            request = SMB2CreateContextRequest()
            request["buffer_name"] = name
            request["buffer_data"] = content
            requests.append(request)
        if again is None:  # a reconnection must ask for nothing else
            identity = SMB2CreateContextRequest()
            identity["buffer_name"] = CreateContextName.SMB2_CREATE_QUERY_ON_DISK_ID
            requests.append(identity)

        handle = Open(self.tree, path.replace("/", "\\"))
        granted = handle.create(
            ImpersonationLevel.Impersonation,
            access,
            0,
            share,
            CreateDisposition.FILE_OPEN,
            options,
            create_contexts=requests,
            oplock_level=RequestedOplockLevel.SMB2_OPLOCK_LEVEL_LEASE,
        )
        file = File(self, handle, lease_key=key, create_guid=guid)
        for context in granted or ():
            match context:
                case SMB2CreateResponseLeaseV2():
                    file.leased = context["lease_state"].get_value()
                case SMB2CreateDurableHandleResponseV2():
                    file.durable = True
                case SMB2CreateQueryOnDiskIDResponse():
                    file.disk_id = context["disk_file_id"].get_value()
        # A reconnection is answered without the context: that it succeeded is the answer.
        file.durable = file.durable or again is not None
        return file

    @contextmanager
    def opened(self, path: str, **how: Any) -> Iterator[File]:
        file = self.open(path, **how)
        try:
            yield file
        finally:
            with suppress(SMBException):
                file.close()
