"""An authority that says whose a workload's key is: it reads credentials, and signs WITs. Experimental."""
