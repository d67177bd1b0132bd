"""A language model behind the completions interface of OpenAI."""
