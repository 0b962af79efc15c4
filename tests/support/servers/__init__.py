"""Servers as processes, and hosts around them: a team's, `vidbridge ui`, `vidbridge serve`."""
