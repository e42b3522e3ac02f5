"""``python -m authz_service`` is ``authz``."""

from authz_service.cli import main

main()
