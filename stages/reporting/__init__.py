"""The sections of the report: each module makes one from the project's results, as plain values or as drawings in SVG."""
