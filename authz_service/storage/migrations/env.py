"""Alembic's environment: the one place beside database.py that begins and commits."""

from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from authz_service.storage.tables import Base

url = make_url(context.config.attributes["url"])
if url.get_backend_name() == "postgresql":
    url = url.set(drivername="postgresql+psycopg")
engine = create_engine(url)
with engine.connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=url.get_backend_name() == "sqlite",
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
