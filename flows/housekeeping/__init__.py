"""What nobody needs any more, and videos that are to be removed."""
