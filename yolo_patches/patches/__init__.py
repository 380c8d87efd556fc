"""The patches, one module each, written against seams; none of them knows an upstream."""
