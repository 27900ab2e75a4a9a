"""Keys that something else holds, named by a URI: an HSM, for example. Each kind of holder has a module here."""
