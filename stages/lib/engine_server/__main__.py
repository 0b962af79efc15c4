"""``python -m stages.lib.engine_server``."""

from stages.lib.engine_server.server import main

if __name__ == "__main__":
    main()
