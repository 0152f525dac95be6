"""What the processes of the soaks run, each a child of its own: Python source that follows `onmount.PRELUDE`.

Not for: what is expected of them (`soak`, `smbsoak`). Units: bytes.
"""

EXACTLY = """
def exactly(fd, size, at):
    "A read that was cut short by an error says so when it goes on."
    found = b''
    while len(found) < size and (part := os.pread(fd, size - len(found), at + len(found))):
        found += part
    return found
"""

READER = """
mount, model, stop, seed = arguments
dice = random.Random(int(seed))
found = dict(reads=0, bytes=0, wrong=[], errors={})

def refused(error):
    name = errno.errorcode[error.errno]
    found['errors'][name] = found['errors'].get(name, 0) + 1
    time.sleep(0.02)

while not os.path.exists(stop):
    client = dice.choice(sorted(os.listdir(model)))
    name = dice.choice(sorted(os.listdir(f'{model}/{client}')) or [None])
    if name is None:
        continue
    direct = dice.random() < 0.5
    try:
        fd = opened(f'{mount}/{client}/{name}', os.O_DIRECT if direct else 0)
    except OSError as error:
        refused(error)
        continue
    try:
        # In this order: a model that is still there was right when the mount's file was opened.
        known = opened(f'{model}/{client}/{name}')
    except FileNotFoundError:
        os.close(fd)
        continue
    if dice.random() < 0.5:
        forget(fd)  # otherwise the kernel would soon answer everything
    length, step = os.fstat(known).st_size, 512 if direct else 1
    try:
        for _ in range(dice.choice((1, 20, 60))):
            size = dice.choice((512, 4096, 65536, 262144, 1 << 20))
            at = dice.randrange(0, length - size) // step * step
            if exactly(fd, size, at) != os.pread(known, size, at):
                found['wrong'].append([client, name, at, size])
            found['reads'] += 1
            found['bytes'] += size
    except OSError as error:
        refused(error)
    finally:
        os.close(fd)
        os.close(known)
answer(found)
"""

SPOIL = """
mounted, known, raw, start, seed = arguments
dice = random.Random(int(seed))
fd, original = opened(mounted), opened(known)
places = [dice.randrange(1 << 20, os.fstat(original).st_size - int(start) - (1 << 20)) for _ in range(20)]
with open(raw, 'r+b') as file:
    for at in places:
        file.seek((512 << 10) + at)
        file.write(dice.randbytes(4096))
forget(fd)
wrong, refused = [], 0
for at in places:
    try:
        if exactly(fd, 4096, int(start) + at) != os.pread(original, 4096, int(start) + at):
            wrong.append(at)
    except OSError:
        refused += 1
answer([wrong, refused])
"""

FAILING = """
# From when the backup is spoiled every read fails, for as long as somebody serves the mount.
mounted, known, stop = arguments
found = dict(failed=0, wrong=[])
try:
    fd, original = opened(mounted, os.O_DIRECT), opened(known)
    dice, length = random.Random(mounted), os.fstat(original).st_size
    print('open', flush=True)
    while not os.path.exists(stop):
        at = dice.randrange(0, length - 4096) // 512 * 512
        try:
            if exactly(fd, 4096, at) != os.pread(original, 4096, at):
                found['wrong'].append(at)
        except OSError as error:
            if error.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV):
                break
            found['failed'] += 1
        time.sleep(0.002)
except OSError:
    print('not there', flush=True)
answer(found)
"""

WHOLE = """
wrong, errors = [], []
for pair in json.load(sys.stdin):
    try:
        mounted, original = (open(path, 'rb') for path in pair)
        with mounted, original:
            while part := original.read(1 << 20):
                if mounted.read(len(part)) != part:
                    wrong.append(pair)
                    break
            else:
                if len(mounted.read()) != 512:
                    wrong.append(pair)
    except OSError as error:
        errors.append(f'{pair[0]}: {error.strerror}')
answer([wrong, errors])
"""
