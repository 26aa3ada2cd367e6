"""What people see: the chat and the command lines. Only this part and the server print."""
