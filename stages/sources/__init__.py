"""Where clips come from: the generated world of shapes, and folders of one's own videos with annotations."""
