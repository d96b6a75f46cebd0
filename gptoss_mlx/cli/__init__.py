"""Commands for people: what is asked, what is shown, and how a command ends."""
