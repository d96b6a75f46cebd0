"""The web as a source of pages: a search engine that the person names, and pages fetched safely."""
