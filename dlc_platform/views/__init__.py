"""Views, from which pages draw: copies of poses, videos and pictures in a form that a browser can show at once.

A view is made when somebody first looks and may be removed at any time; nothing of value is kept here. The catalogue
does not know views, and no product depends on one. Who asks for a view names the product; the paths are ours.
"""
