"""The study as a whole: file, storage, execution, tracking, front and export."""
