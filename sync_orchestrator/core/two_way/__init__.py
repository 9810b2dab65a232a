"""Records that people change on both sides: links, the merge of shared fields, and conflicts."""
