"""Full syncs of a business group: fill the archive from the sources, push what differs, and plan it beforehand."""
