"""The one Postgres of a lab: the embedded server, and the URLs that lead to it or to an external one.

Tables and queries do not belong here.
"""
