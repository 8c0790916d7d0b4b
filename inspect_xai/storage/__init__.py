"""Everything SQL: tables, the store and the compact form of maps."""
