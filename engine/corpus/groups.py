"""Completes groups of outputs, such as the members of a tar archive, as soon as each has all its outputs."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from mkc_fast.engine.storage.listing import objects_below
from mkc_fast.engine.storage.writing import upload_file
from mkc_fast.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from mkc_fast.engine.corpus.manifest import Manifest
    from mkc_fast.engine.corpus.outputs import Folder
    from mkc_fast.engine.datasets.dataset import Groups

# Groups that follow one another are computed together up to so many utterances: enough for batches of similar lengths,
# and few enough that their outputs, which are still files of their own, take little of the disk.
_IN_A_PART = 2000
# Groups that wait to be completed. Workers go on meanwhile, so more would only fill the disk.
_MOST_WAITING = 4


class _FolderGroups:
    """The groups of one output folder."""

    def __init__(self, folder: Folder, groups: Groups, manifest: Manifest, first_part: int) -> None:
        self.folder, self.groups, self.manifest = folder, groups, manifest
        out = folder.out or folder.path
        self.out = out
        utterances, position = folder.utterances, 0
        self.done: set[int] = set()
        there = None if folder.remote is None else objects_below(folder.remote.url, OutputError)
        self.left: list[int] = []  # outputs that each group waits for
        self.parts: list[int] = []
        part, in_part = first_part, 0
        for group in range(len(groups)):
            begin, recorded = position, True
            while position < len(utterances) and groups.of(position) == group:
                recorded = recorded and utterances[position].id in manifest
                position += 1
            if recorded and manifest.group_is_there(groups.name(group), out, there):
                self.done.add(group)
            if in_part and in_part + position - begin > _IN_A_PART:
                part, in_part = part + 1, 0
            in_part += position - begin
            self.parts.append(part)
            self.left.append(0)

    def complete(self, group: int) -> None:
        """Write the files of a group; those of a folder at an address are uploaded."""
        self.groups.complete(group, self.folder.outputs)
        if self.folder.remote is not None:
            for file in self.groups.files(group):
                upload_file(file, self.folder.address_of(file))

    def record(self, group: int) -> None:
        """Record a group that is complete, and remove what its files have made superfluous."""
        files = self.groups.files(group)
        self.manifest.append_group(self.groups.name(group), self.out, files)
        self.groups.clean(group)
        if self.folder.remote is not None:
            for file in files:
                file.unlink(missing_ok=True)
        self.done.add(group)


class OpenGroups:
    """The groups of a run: what is complete, what each of the others waits for; and a thread that completes them."""

    def __init__(self) -> None:
        self._folders: dict[int, _FolderGroups] = {}
        self._of_task: dict[int, tuple[_FolderGroups, int]] = {}
        self._ready: deque[tuple[_FolderGroups, int]] = deque()
        self._working: deque[tuple[_FolderGroups, int, Future[None]]] = deque()
        self._thread = ThreadPoolExecutor(1, "group")
        self._next_part = 0

    def add(self, folder: Folder, manifest: Manifest) -> Callable[[int], tuple[bool, int]]:
        """Take in a folder.

        Args:
            folder: Its groups, if it has some.
            manifest: Of the folder, which says what an earlier run has completed.

        Returns:
            A function that says of the utterance at a position whether its group is complete, and which part of the run
            it is in.
        """
        if folder.groups is None:
            return lambda _: (False, 0)
        of_folder = _FolderGroups(folder, folder.groups, manifest, self._next_part)
        self._next_part = of_folder.parts[-1] + 1 if of_folder.parts else self._next_part
        self._folders[id(folder)] = of_folder

        def state(position: int) -> tuple[bool, int]:
            group = of_folder.groups.of(position)
            return group in of_folder.done, of_folder.parts[group]

        return state

    def expect(self, folder: Folder, position: int, task: int) -> None:
        """Note that a group waits for the output of a task: of the utterance at a position of a folder."""
        of_folder = self._folders.get(id(folder))
        if of_folder is not None:
            group = of_folder.groups.of(position)
            of_folder.left[group] += 1
            self._of_task[task] = of_folder, group

    def begin(self) -> None:
        """Begin with the groups that have all outputs already; remove what complete ones have left behind."""
        for of_folder in self._folders.values():
            for group, left in enumerate(of_folder.left):
                if group in of_folder.done:
                    of_folder.groups.clean(group)
                elif not left:
                    self._ready.append((of_folder, group))

    def written(self, task: int) -> None:
        """Note that the output of a task is there. A group whose task failed stays as it is until the next run."""
        found = self._of_task.pop(task, None)
        if found is not None:
            of_folder, group = found
            of_folder.left[group] -= 1
            if not of_folder.left[group]:
                self._ready.append(found)

    def advance(self, *, wait: bool = False) -> None:
        """Complete groups that are ready, and record those that are complete.

        Args:
            wait: Until all are.

        Raises:
            OutputError: A file of a group cannot be read, written or uploaded.
            WriteError: The manifest cannot be written.
        """
        while self._ready or self._working:
            while self._ready and len(self._working) < _MOST_WAITING:
                of_folder, group = self._ready.popleft()
                future = self._thread.submit(of_folder.complete, group)
                self._working.append((of_folder, group, future))
            of_folder, group, future = self._working[0]
            # If many wait, the run waits for the oldest: the disk is to hold few outputs that are still apart.
            if not (wait or future.done() or len(self._ready) > _MOST_WAITING):
                return
            future.result()
            self._working.popleft()
            of_folder.record(group)

    def incomplete(self, folder: Folder) -> Iterator[str]:
        """The names of a folder's groups that are not complete."""
        of_folder = self._folders.get(id(folder))
        if of_folder is not None:
            groups = of_folder.groups
            yield from (groups.name(group) for group in range(len(groups)) if group not in of_folder.done)

    def close(self) -> None:
        """Finish the group that is being written; those that wait are left to the next run."""
        self._thread.shutdown(wait=True, cancel_futures=True)
