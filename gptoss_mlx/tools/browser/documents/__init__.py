"""A folder of documents as a source of pages: read, cut into passages, ranked by BM25; offline."""
