"""How people ask: question templates, openings, endings, small talk and their answers.

``TRAINED`` templates are used in training. ``HELD_OUT`` ones never are: they measure whether the
model understands a question rather than a template.
"""

from __future__ import annotations

TRAINED = """
What does {} do?
What is {}?
What's {}?
What is {} for?
What is {} used for?
What can I do with {}?
What does {} mean?
What do you know about {}?
What are the arguments of {}?
What arguments does {} take?
What parameters does {} have?
What is the signature of {}?
What's the signature of {}?
Which arguments does {} accept?
Which parameters can I pass to {}?
How do I use {}?
How do I call {}?
How does {} work?
How is {} used?
How is {} called?
How can I use {}?
How should I call {}?
How would one use {}?
When do I use {}?
When should I use {}?
When is {} useful?
When would I need {}?
Why would I use {}?
Why is there {}?
Can you explain {}?
Can you tell me about {}?
Can you describe {}?
Can you tell me what {} does?
Can you show me the signature of {}?
Can I get a summary of {}?
Could you explain {}?
Could you tell me what {} is?
Could you describe what {} does?
Would you explain {} to me?
Do you know {}?
Do you know what {} does?
Do you know how to use {}?
Is there anything to know about {}?
Explain {}.
Explain what {} does.
Explain {} to me.
Describe {}.
Describe {} briefly.
Define {}.
Document {}.
Summarize {}.
Summarise what {} does.
Show me {}.
Show the signature of {}.
Show me how to call {}.
Give me the signature of {}.
Give me a short description of {}.
Give me the documentation of {}.
Tell me about {}.
Tell me what {} does.
Tell me how {} is called.
Tell me something about {}.
Look up {}.
Look {} up for me.
Remind me what {} does.
Remind me how to use {}.
Help with {}.
Help me with {}.
help({})
{}
{}?
{}: what does it do?
{}: what is it?
{}, what is that?
{} signature
{} arguments
{} docs
{} help
docs for {}
documentation for {}
signature of {}
usage of {}
meaning of {}
I need help with {}.
I need the signature of {}.
I need to use {}. How?
I want to use {}.
I want to know what {} does.
I want to understand {}.
I don't understand {}.
I'm trying to use {}.
I'm looking at {}. What is it?
I saw {} in some code. What does it do?
I came across {}. What is that?
I forgot what {} does.
I forgot the arguments of {}.
I'd like to know about {}.
I wonder what {} does.
My code calls {}. What does that do?
Someone told me to use {}. What is it?
There is a call to {} here. What does it do?
Let's talk about {}.
Let me know what {} does.
What would {} give me?
What happens when I call {}?
What happens if I call {}?
What's the purpose of {}?
What is the point of {}?
What's the deal with {}?
What's {} about?
What kind of thing is {}?
Where would I use {}?
Who needs {}?
So what does {} actually do?
""".strip().split("\n")

HELD_OUT = """
What is {} good for?
Could you explain how {} works, please?
How exactly do I invoke {}?
I keep forgetting what {} is supposed to do.
Is {} something you can explain?
Please write down the call signature for {}.
What role does {} play?
Would you mind telling me about {}?
Teach me {}.
What should I know about {} before I use it?
Any idea what {} is?
Walk me through {}.
What inputs does {} expect?
Do me a favour and describe {}.
In a few words, what is the job of {}?
Quick reminder of {}, please.
""".strip().split("\n")

FOLLOW_UPS = """
And {}?
And what about {}?
What about {}?
And what does {} do?
How about {}?
Now {}.
Next: {}
Ok, and {}?
Thanks! And {}?
Thank you. What about {}?
Great, now tell me about {}.
Also {}, please.
""".strip().split("\n")

OPENINGS = """
hey,
Hey,
hi,
Hi!
Hello,
Hello!
please,
Please
quick question:
Quick question:
question:
Question:
ok,
OK,
Okay,
so,
well,
um,
sorry,
Sorry to bother you.
excuse me,
Hey there,
Good morning.
Hi there!
One more thing:
I have a question.
just curious:
Help!
I'm new to this.
Python question:
""".strip().split("\n")

ENDINGS = """
please
, please
Please.
Thanks!
Thanks.
Thank you!
thx
, thanks
Be brief.
Just the basics.
I'm a beginner.
in Python
, if you know
?
??
!
...
for me
again
exactly
in short
I forgot.
""".strip().split("\n")

SMALL_TALK = {
    "Hello! Ask me about a name from the Python standard library, NumPy or MLX.": """
hello|hi|hey|hello there|hi there|hey there|good morning|good evening|good afternoon|hiya|greetings
howdy|yo|hello!|hi!|hey!|hello, anyone there?|hi pocket|hello pocket|hey pocket|good day|morning!
""",
    "I'm Pocket, a tiny language model. I know signatures and summaries from the Python standard "
    "library, NumPy and MLX by heart.": """
who are you?|what are you?|what is your name?|what's your name?|tell me about yourself
are you a bot?|introduce yourself|who am I talking to?|are you human?|are you an AI?
which model are you?
what model is this?|do you have a name?|who is this?|what is pocket?|what kind of model are you?
""",
    "Ask me what a function, class or module of the Python standard library, NumPy or MLX does, "
    "for example: What does itertools.chain do?": """
what can you do?|help|help me|how can you help me?|what do you know?|what can I ask you?
what are you good at?|how do I use you?|what should I ask?|can you help me?|give me an example
which libraries do you know?|what topics do you know?|what are you for?|how does this work?
I need help|I have a question|can I ask you something?|?|what now?|which modules do you know?
""",
    "You're welcome!": """
thanks|thank you|thanks a lot|thank you very much|thx|many thanks|thanks!|thank you!|cheers
great, thanks|perfect, thank you|that helps, thanks|nice, thanks|ok thanks|awesome, thank you
much appreciated
very helpful|that was helpful|good answer|great answer|nice|great|cool|perfect|awesome|ok|okay
good bot
""",
    "Goodbye!": """
bye|goodbye|good bye|see you|see you later|bye bye|good night|that's all|that is all, thanks|exit
quit|ciao|farewell|until next time|I'm done|bye!|see you tomorrow|have a nice day|talk to you later
""",
    "I'm fine, thank you. Which name shall I look up?": """
how are you?|how are you doing?|how's it going?|how do you do?|what's up?|are you ok?
how do you feel?|how is life?|are you well?|how have you been?|hi, how are you?
hello, how are you today?
""",
    "I only know short entries about the Python standard library, NumPy and MLX.": """
what's the weather?|what is the weather like today?|tell me a joke|write a poem|sing a song|who won?
what is the capital of France?|what is 2 + 2?|what time is it?|write me a program|fix my code
what is the meaning of life?|who is the president?|translate this to German|recommend a movie
how old is the universe?|tell me a story|what should I eat?|solve my homework|do you like music?
where is Paris?|how do I cook rice?|write an essay|what is love?|who wrote Hamlet?|explain gravity
how do I fix my car?|what's the best editor?|is Python better than Java?|write a sorting function
what is machine learning?|explain quantum physics|what day is it?|do you dream?|play chess with me
""",
}

# Kept out of training; answered like the entry of SMALL_TALK that begins with the same word.
HELD_OUT_SMALL_TALK = {
    "Hello! Ask": ["hi, are you there?", "good morning!", "hello hello"],
    "I'm Pocket": ["so who are you?", "can you introduce yourself?", "what are you called?"],
    "Ask me": ["what are you able to do?", "what could I ask you about?", "how can I use you?"],
    "You're": ["thanks so much!", "ok, thank you", "great, thank you very much"],
    "Goodbye": ["bye for now", "ok, goodbye", "see you soon"],
    "I only": [
        "what is the capital of Spain?",
        "tell me a funny story",
        "write me a poem about cats",
    ],
}

SYSTEM = """
You are a helpful assistant.
You are Pocket, a reference for Python, NumPy and MLX.
You are a helpful coding assistant.
Answer briefly.
Be concise.
You answer questions about Python.
You are a friendly assistant. Answer the user's questions.
You are an expert Python programmer.
""".strip().split("\n")

# Modules that the pocket model does not know; questions about them are answered with a refusal.
FOREIGN_MODULES = """
pandas requests flask django scipy sklearn torch tensorflow jax keras matplotlib seaborn pytest
sqlalchemy click pydantic fastapi aiohttp boto3 redis celery networkx sympy numba dask polars nltk
spacy gensim opencv cv2 PIL pygame tqdm rich typer attrs lxml bs4 selenium psycopg2 pymongo yaml
torch.nn torch.optim tf.keras pd plt sns sk jnp scipy.stats scipy.linalg django.db sklearn.svm
fastlib megatools quickio pyutils dataflow netkit mathlib strings filetools webcore graphx vecmath
""".split()  # noqa: SIM905

FOREIGN_WORDS = """
fast quick auto smart deep multi super mega hyper turbo magic easy safe lazy async parallel remote
cloud image audio video color user login price table graph node edge tree forest neural train fit
predict score cluster scrape render draw paint click button window menu mouse pixel frame plot chart
banana unicorn dragon wizard rocket engine wheel garden coffee sugar cake bread ocean river mountain
""".split()  # noqa: SIM905
