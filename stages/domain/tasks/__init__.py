"""One module a task: what the sample looks like, how it is made, what is asked, how a reply is scored."""
