"""The report page: blocks of content in Python, one HTML file that draws them with a script of its own."""
