"""What `quickstart` and `compare` share. `poolers` says what is measured, `cases` with what, `rounds` how, `report` shows it."""
