"""What people see: the chat and the command lines. Only this room prints."""
