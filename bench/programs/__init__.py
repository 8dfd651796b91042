"""SGLang frontend programs that run unchanged against dense and lim servers, and their runner."""
