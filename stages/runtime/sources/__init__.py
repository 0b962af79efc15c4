"""Where the videos and rows of a source are fetched from: folders, buckets, web servers, tars."""
