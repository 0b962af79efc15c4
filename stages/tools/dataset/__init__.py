"""Looking at data without running a stage: check, browse, export, remove."""
