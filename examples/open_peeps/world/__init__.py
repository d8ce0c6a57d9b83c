"""The world of Open Peeps: people and views, their exact renders, captions and data sets."""
