"""`board`: a local web page with the runs of a folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Board:
    """Show all runs below a folder as a web page on this machine, as they go: curves, settings side by side, samples.

    The page reads run folders and writes nothing. Ctrl-C ends it.
    """

    run_folders: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")] = ("output",)
    """Run folders, or folders of runs."""

    port: int = 6007
    """Where on this machine the page is: http://127.0.0.1:PORT. 0 takes a free one."""

    def run(self) -> None:
        from zotune.board.reading import Runs
        from zotune.board.server import HOST, open_board
        from zotune.errors import InputError
        from zotune.values import path_of, whole_of

        port = whole_of(self.port, "--port", 0, 65_535)
        folders = [Path(path_of(folder, "RUN")) for folder in self.run_folders]
        for folder in folders:
            if not folder.is_dir():
                raise InputError(f"RUN: there is no folder {folder}; name one with runs in it")
        server = open_board(Runs(folders), port)
        print(f"http://{HOST}:{server.server_port} (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            server.server_close()
