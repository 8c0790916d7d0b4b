"""From a folder or URL to claimed files, pixels and the part each picture shows."""
