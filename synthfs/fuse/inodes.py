"""Which inodes the kernel may ask about: those of the present tree, and those of earlier ones that it has not forgotten.

The kernel counts how often it was told of an inode and says when it lets go. A refresh replaces the tree at once, but an
inode that is still known keeps its node: a file that is open goes on being what it was.

Not for: asynchronous anything; all of it runs on the event loop. Names are bytes here, as the kernel has them.
"""

import os
from collections.abc import Mapping
from dataclasses import replace

from synthfs.plan.tree import ROOT_INODE, Bud, Directory, File, Live, Node, Numbered, Tree


class Inodes:
    """The nodes of one tree after another, by inode number."""

    def __init__(self, tree: Tree) -> None:
        self._known: dict[int, int] = {}
        self._nodes: dict[int, Numbered] = {}
        self._old: dict[int, Numbered] = {}
        self.replace(tree)

    def replace(self, tree: Tree) -> None:
        """Makes `tree` the present one."""
        nodes: dict[int, Numbered] = {}
        children: dict[int, dict[bytes, Node]] = {}
        parents: dict[int, int] = {}
        _index(tree.root, ROOT_INODE, nodes, children, parents)
        gone = {inode: node for inode, node in self._nodes.items() if inode in self._known and inode not in nodes}
        self.tree, self._nodes, self._children, self._parents = tree, nodes, children, parents
        self._old = {inode: node for inode, node in (self._old | gone).items() if inode not in nodes}

    def unfold(self, bud: Bud, directory: Directory) -> None:
        """Puts `directory` where `bud` is in the present tree, if it is."""
        if self.is_present(bud):
            root = self.tree.root
            entries = tuple(directory if node is bud else node for node in root.entries)
            self.tree = replace(self.tree, root=replace(root, entries=entries))
            self._nodes[ROOT_INODE] = self.tree.root
            self._children[ROOT_INODE][os.fsencode(directory.name)] = directory
            _index(directory, ROOT_INODE, self._nodes, self._children, self._parents)

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def blocks(self) -> int:
        """The length of all files of the present tree, in blocks of 4 KiB."""
        return sum(-(-node.length // 4096) for node in self._nodes.values() if isinstance(node, File))

    def node(self, inode: int) -> Numbered | None:
        return self._nodes.get(inode) or self._old.get(inode)

    def is_present(self, node: Numbered) -> bool:
        """Whether `node` is what the present tree has under its inode."""
        return self._nodes.get(node.inode) is node

    def parent(self, inode: int) -> int:
        return self._parents.get(inode, ROOT_INODE)

    def children(self, inode: int) -> Mapping[bytes, Node] | None:
        """What is in a directory of the present tree; nothing in one that is gone; None for what is no directory, or a bud."""
        if (found := self._children.get(inode)) is not None:
            return found
        return {} if isinstance(self._old.get(inode), Directory | Bud) else None

    def listing(self, inode: int) -> tuple[Node, ...]:
        """What is in a directory for which there are `children`, in order, and stays in it: no copy, however many ask."""
        found = self._nodes.get(inode)
        return found.entries if isinstance(found, Directory) else ()

    def remember(self, node: Numbered) -> None:
        """The kernel is told of `node` once more."""
        self._known[node.inode] = self._known.get(node.inode, 0) + 1
        if node.inode not in self._nodes:
            self._old[node.inode] = node

    def forget(self, inode: int, count: int) -> None:
        """The kernel has forgotten `count` of the times that it was told."""
        left = self._known.get(inode, 0) - count
        if left > 0:
            self._known[inode] = left
        else:
            self._known.pop(inode, None)
            self._old.pop(inode, None)


def _index(
    directory: Directory,
    parent: int,
    nodes: dict[int, Numbered],
    children: dict[int, dict[bytes, Node]],
    parents: dict[int, int],
) -> None:
    nodes[directory.inode] = directory
    parents[directory.inode] = parent
    children[directory.inode] = {os.fsencode(node.name): node for node in directory.entries}
    for node in directory.entries:
        if isinstance(node, Directory):
            _index(node, directory.inode, nodes, children, parents)
        elif not isinstance(node, Live):
            nodes[node.inode] = node
