"""The life of a batch: its file checked, its lines answered in the time that chats leave, files of the answers."""
