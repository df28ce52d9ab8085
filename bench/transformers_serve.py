"""`transformers serve`, the real one, in this process; takes its arguments. See no_video.py for the one difference."""

from __future__ import annotations

import no_video


def main() -> None:
    no_video.install()
    from transformers.cli.transformers import app

    app()


if __name__ == "__main__":
    main()
