"""The journal as a file that is open: created or gone on with, appended to, and locked against other processes."""

from pathlib import Path

from zotune.errors import InputError
from zotune.files import LineFile, write_whole
from zotune.run.journal.entries import Checkpointed, Entry
from zotune.run.journal.header import Header
from zotune.run.journal.lines import encode
from zotune.run.journal.reading import Mark, parse
from zotune.run.locks import lock


class Journal:
    """An open journal, locked until `close`. `create` and `reopen` make one."""

    def __init__(self, file: LineFile, is_chained: bool, marks: list[Mark]) -> None:
        self._file = file
        self._is_chained = is_chained
        self._marks = marks

    @classmethod
    def create(cls, path: Path, header: Header) -> "Journal":
        """A journal with its first line, and beside it the start that the line names.

        Raises:
            OSError: the disk refused.
        """
        if header.lora and header.lora.start:
            header.lora.start.write(path.parent)
        line, checksum = encode(header.to_json())
        write_whole(path, line)
        return cls(_locked(path), header.is_chained, [Mark(len(line), checksum, replayable=True)])

    @classmethod
    def reopen(cls, path: Path) -> "tuple[Journal, Header, list[Entry]]":
        """Go on with a journal: its header, its entries, and the file ready for the next one.

        It is locked before it is read, so that no step is missed which another process is writing.

        Raises:
            InputError: no journal there, another process has it, or it is damaged.
        """
        try:
            file = _locked(path)
        except OSError as error:
            raise InputError(
                f"{path.parent} is not a run folder that can be written to: cannot open {path.name} ({error.strerror})"
            ) from error
        try:
            content = file.read()
            parsed = parse(path, content)
            if parsed.marks[-1].end < len(content):
                file.cut(parsed.marks[-1].end)
        except BaseException:
            file.close()
            raise
        return cls(file, parsed.header.is_chained, parsed.marks), parsed.header, parsed.entries

    def append(self, entry: Entry) -> None:
        """Write one step; it is on disk when this returns.

        Raises:
            OSError: the disk refused; what was written before stays whole.
        """
        last = self._marks[-1]
        line, checksum = encode(entry.to_json(), last.checksum if self._is_chained else 0)
        self._file.append(line)
        self._marks.append(Mark(last.end + len(line), checksum, not isinstance(entry.update, Checkpointed)))

    def cut(self, step: int) -> None:
        """Forget the steps after `step`, the one that `latest` came to: they are to be computed again.

        The first of them must be one that only checkpoints hold, so that no step is forgotten which a journal holds.
        """
        if step < len(self._marks) - 1:
            assert not self._marks[step + 1].replayable
            self._file.cut(self._marks[step].end)
            del self._marks[step + 1 :]

    def close(self) -> None:
        self._file.close()


def _locked(path: Path) -> LineFile:
    file = LineFile(path)
    try:
        lock(file, path)
    except InputError:
        file.close()
        raise
    return file
