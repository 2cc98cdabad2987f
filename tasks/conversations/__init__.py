"""conversations: any conversational file as a safety set."""
