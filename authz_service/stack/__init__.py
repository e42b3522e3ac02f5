"""Starts the servers of the production shape on one machine, for demonstrations and tests.

Needs the extra ``stack``. Nothing here serves a deployment; nothing else here may be imported by
the service itself.
"""
