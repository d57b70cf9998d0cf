"""A packed model as a page: the engine in WebAssembly, its wrapper in JavaScript, and a demo of one file."""
