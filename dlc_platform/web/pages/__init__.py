"""The lab's own pages: sessions, models and days for people to look at.

Routes ask the layers below and draw what they say; nothing is computed here. Each page is a module with its routes;
`app` puts them together behind the gate. What a page filters by is in its address, so that it can be sent to others.
"""
