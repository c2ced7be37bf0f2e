"""Which configuration next: search engines behind one interface (`autopeft.search.table.SEARCHERS`)."""
