"""What is deployed: the chart, the image, alerts, dashboards, locks."""
