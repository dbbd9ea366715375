"""Deployment: the chart, the image, alerts, dashboards and locks."""
