"""The report: one page of scores, curves, replies and costs."""
