"""Containers of rows: JSON documents, JSON lines, tables of text, Parquet, Arrow."""
