"""What issue 5 promises, shown: tampering found, kills survived, floods bounded, dashboards fed, logs clean."""
