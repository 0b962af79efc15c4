"""The content that DVC keeps: remote, run cache, and a look at lists of files before they are
checked out.
"""
