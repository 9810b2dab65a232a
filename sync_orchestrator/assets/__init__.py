"""The assets: of each entity the archive and the mirror, partitioned by business group."""
