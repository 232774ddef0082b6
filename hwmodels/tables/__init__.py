"""Tables of costs, their files, and working memory."""
