"""What the demo model is taught to say: questions in several wordings, each group with one fixed answer.

The tests ask the `held_out` wordings: most are new, the plainest differ from a trained one only in capitals and marks.
"""

from __future__ import annotations

from dataclasses import dataclass

from .blocks import wordings

GREETING = (
    "Hello! I am demo, a very small model that ships with meshnode. "
    "I can count, say the alphabet, add small numbers and answer a few questions about meshnode."
)
OTHERWISE = (
    "I am only a demo and cannot answer that. For real answers get a real model: "
    "meshnode pull <model>, then meshnode --model <model>."
)
COUNT_LIMIT = "I can only count upwards, from 0 to 200."
SUM_LIMIT = "I can only add numbers from 0 to 100."
ALPHABET = ", ".join("abcdefghijklmnopqrstuvwxyz")


@dataclass(frozen=True)
class Lesson:
    """One answer with the wordings that ask for it."""

    answer: str
    wordings: tuple[str, ...]
    held_out: tuple[str, ...]


GREETINGS = (
    Lesson(
        GREETING,
        wordings("""
        hello | hi | hey | hello there | hi there | hey there | hello demo | hi demo | good day | greetings | hiya
        howdy | hello! | Hi! | hello, model | hello hello | hey demo | hi, nice to meet you | hello again
        say hello | say hi | hello world
        """),
        wordings("""
        Hello. | hi there! | Hey!! | hello, demo! | HELLO | Hi, hello
        """),
    ),
    Lesson(
        "Good morning! What can I do for you?",
        wordings("""
        good morning | good morning demo | morning | good morning to you | a good morning | good morning!
        """),
        wordings("""
        Good morning, demo. | GOOD MORNING
        """),
    ),
    Lesson(
        "Good evening! What can I do for you?",
        wordings("""
        good evening | good evening demo | evening | good evening to you | good evening!
        """),
        wordings("""
        Good evening, demo.
        """),
    ),
    Lesson(
        "I am fine, thank you. I am very small, but I am fast.",
        wordings("""
        how are you | how are you today | how are you doing | how do you do | how is it going | how's it going
        are you well | are you ok | hello, how are you | hi, how are you | how do you feel | what's up
        """),
        wordings("""
        How are you? | Hey, how are you doing today? | how are you demo
        """),
    ),
    Lesson(
        "You are welcome!",
        wordings("""
        thanks | thank you | thank you very much | thanks a lot | many thanks | thanks demo | thank you demo
        great, thanks | ok thanks | thank you so much | perfect, thank you | cheers | thx | nice, thanks
        """),
        wordings("""
        Thanks! | Thank you, demo. | ok, thank you very much
        """),
    ),
    Lesson(
        "Goodbye! Come back any time.",
        wordings("""
        bye | goodbye | bye bye | see you | see you later | good night | farewell | bye demo | goodbye demo
        see you soon | until next time | ok bye | have a nice day | i have to go
        """),
        wordings("""
        Bye! | Goodbye, demo. | ok, see you later
        """),
    ),
    Lesson(
        "I am demo, a very small model that ships with meshnode.",
        wordings("""
        who are you | what are you | what is your name | what's your name | tell me your name | do you have a name
        introduce yourself | which model are you | what model are you | what model is this | who am i talking to
        are you chatgpt | are you a real model | are you human | are you a robot | tell me about yourself
        say your name | your name | what should i call you | are you an ai | who is this
        what kind of model are you | how big are you | which model is this | hello, who are you
        hi, what is your name | what is demo | who is demo
        """),
        wordings("""
        Who are you? | Hi, who are you? | please tell me your name | WHAT IS YOUR NAME?
        which model are you, please
        """),
    ),
    Lesson(
        "I can count from 0 to 200, say the alphabet, add small numbers and answer a few questions about meshnode.",
        wordings("""
        what can you do | what can i ask you | help | help me | what do you know | what are you able to do
        what are your skills | how can you help me | can you help me | what can i do with you | what are you good at
        what questions can you answer | show me what you can do | what may i ask
        """),
        wordings("""
        What can you do? | help! | hello, what can you do
        """),
    ),
)

FACTS = (
    Lesson(
        "meshnode joins several machines into one mesh that serves language models. It offers one API and"
        " runs the models with llama.cpp.",
        wordings("""
        what is meshnode | what does meshnode do | tell me about meshnode | explain meshnode | describe meshnode
        what's meshnode | what is meshnode for | what is meshnode good for | why should i use meshnode
        what is this meshnode | how does meshnode work | give me an overview of meshnode | meshnode
        what is a mesh of machines | what is the purpose of meshnode | what can meshnode do | what is this software
        """),
        wordings("""
        What is meshnode? | please explain meshnode to me | can you tell me what meshnode does? | WHAT IS MESHNODE
        """),
    ),
    Lesson(
        "Run meshnode invite on the first machine. It prints a token. On the other machine run meshnode "
        "--join <token>.",
        wordings("""
        how do i invite a machine | how do i join a machine | how do i add a machine | how can i add another machine
        how do i invite another machine | how do i join a mesh | how do i join the mesh
        how can a second machine join | how do i connect two machines | how do i connect machines
        how do i add a node | how do i join a node | how do i invite someone | how do i invite a friend
        how do i get a token | what is the join token | what does meshnode invite do | what does meshnode --join do
        how to join | how to invite | how do i invite | how do i join | how do i add more computers
        how do i build a mesh | how do i add my laptop | how do i link my machines | what is an invite token
        how do i bring a second computer in
        """),
        wordings("""
        How do I invite a machine? | how can I join the mesh? | How do I add another computer to the mesh?
        how do I connect my two machines
        """),
    ),
    Lesson(
        "The API listens on port 9337, at http://127.0.0.1:9337/v1.",
        wordings("""
        which port is the api | what port is the api on | which port does the api use | what is the api port
        where is the api | what is the url of the api | what is the api address | on which port does the api listen
        api port | how do i reach the api | what is the base url | which port does meshnode use for the api
        what is the address of the api | how do i call the api | what port does the openai api use
        which port should my client use | where do i send requests | is there an api
        which port does meshnode listen on | what is the endpoint | what is port 9337 | what is on port 9337
        """),
        wordings("""
        Which port is the API on? | what's the port of the API? | Where does the API listen?
        what is the API port, please
        """),
    ),
    Lesson(
        "The console is at http://127.0.0.1:3131, on port 3131.",
        wordings("""
        which port is the console | what port is the console on | where is the console | what is the console port
        how do i open the console | what is the url of the console | on which port is the console | console port
        where do i find the console | is there a web console | is there a web page | how do i reach the console
        where is the web interface | is there a dashboard | where is the dashboard
        what is the address of the console | is there a web interface | is there a gui | what is port 3131
        what is on port 3131 | where is the web ui | can i see the mesh in a browser
        """),
        wordings("""
        Which port is the console on? | how can I open the console? | Where can I find the console?
        what is the console address
        """),
    ),
    Lesson(
        "The engine is llama.cpp. It reads models in the GGUF format.",
        wordings("""
        which engine does meshnode use | what engine do you use | what engine runs the models | what is the engine
        do you use llama.cpp | is it llama.cpp | what runs the models | which engine | what is under the hood
        which backend does meshnode use | what backend is used | does meshnode use llama.cpp | which runtime is used
        which model format is supported | what file format do models have | which format do the models use
        what is gguf | what inference engine is this | how are the models run | does it use vllm | what is llama.cpp
        """),
        wordings("""
        What engine does meshnode use? | which engine runs the models? | Is the engine llama.cpp?
        what is the engine of meshnode
        """),
    ),
    Lesson(
        "Yes, meshnode is private by default: it listens on loopback only, and other machines can join "
        "only with your token.",
        wordings("""
        is it private | is meshnode private | is my data private | is meshnode safe | is meshnode secure
        is it secure | who can see my data | does it send my data anywhere | can others use my machine
        is my mesh public | who can join my mesh | is the mesh private | are my prompts private
        who can read my prompts | is it safe | can strangers join my mesh | does meshnode listen on the network
        is it open to the network | is the api reachable from outside | what about privacy | is loopback the default
        is the default private
        """),
        wordings("""
        Is it private? | is meshnode private by default? | Who can see my prompts? | are my chats private
        """),
    ),
    Lesson(
        "Yes, meshnode is free: it is open source under the MIT licence.",
        wordings("""
        is meshnode free | is it free | what does meshnode cost | how much does it cost | what is the licence
        what licence does meshnode have | which licence | what license is it | what is the license
        is it open source | is meshnode open source | do i have to pay | under which licence is meshnode | licence
        license | what license does meshnode use | can i use it for free | can i use it at work
        how much is meshnode | is the source code available | is it mit
        """),
        wordings("""
        Is meshnode free? | which license does meshnode have? | What is the licence of meshnode?
        is it free of charge
        """),
    ),
    Lesson(
        "meshnode splits the model by layers over near machines, so that each machine keeps only a part of it.",
        wordings("""
        what happens when a model does not fit | what if a model does not fit | what if the model is too big
        what happens if a model is too large | what if my machine is too small
        how do i run a model that is too big | can a model be split | how is a model split
        does meshnode split models | how does splitting work | what if i have too little memory
        what happens with big models | can i run a big model on small machines | how are layers split
        how does meshnode run large models | can two machines run one model | can several machines share a model
        what if the model does not fit in memory | model too large | my model does not fit
        the model is too big for my machine | how do i split a model | what is a split
        """),
        wordings("""
        What happens when a model does not fit? | what if my model is too large for one machine?
        Can meshnode split a model? | how does meshnode split a big model
        """),
    ),
    Lesson(
        "The nodes find each other by gossip and by mDNS on the local network. The public swarm uses Nostr.",
        wordings("""
        how do nodes find each other | how do the nodes find each other | how do machines find each other
        how does discovery work | what is the public swarm | how do nodes discover each other | does it use mdns
        does it use nostr | what is nostr used for | what is mdns used for | what is gossip used for
        does it use gossip | how are nodes discovered | how are machines discovered
        how do nodes talk to each other | how does the mesh find nodes | how do nodes learn about each other
        is there a central server | how do peers find each other | how does the swarm work | is there a public swarm
        discovery
        """),
        wordings("""
        How do nodes find each other? | how do machines discover each other? | How does the discovery of nodes work?
        how do the peers find each other
        """),
    ),
    Lesson(
        "Run meshnode load <model> while the node is running, or start it with meshnode --model <model>.",
        wordings("""
        how do i load another model | how do i load a model | how can i load a bigger model
        how do i use another model | how do i change the model | how do i switch the model
        how do i run another model | how do i start a model | how do i serve a model | how do i get a better model
        how do i load a real model | how do i pick a model | how do i choose a model | load a model
        what does meshnode load do | can i use a different model | how do i run a real model
        how do i use a bigger model | how to load a model | how do i run my own model | which command loads a model
        how do i serve another model | how do i run llama
        """),
        wordings("""
        How do I load another model? | how can I run a bigger model? | How do I load a different model?
        how do i switch to another model
        """),
    ),
    Lesson(
        "Run meshnode status. The console shows the same.",
        wordings("""
        how do i see the status | how do i see status | how do i check the status | what is the status command
        how do i know if it works | how do i see the nodes | which command shows the status
        how do i list the nodes | how do i see which machines are there | how do i see the running models
        show me the status | status | what does meshnode status do | how can i check the mesh
        how do i see what is running | is everything running | how do i see the machines in the mesh
        how do i monitor the mesh | how to see the status | how do i check my mesh | what is the state of the mesh
        """),
        wordings("""
        How do I see the status? | how can I check the status of the mesh?
        Which command shows the status of my nodes? | how do i view the status
        """),
    ),
    Lesson(
        "The models are kept in the Hugging Face cache. meshnode pull <model> puts them there.",
        wordings("""
        where are models kept | where are the models kept | where are models stored | where are the models stored
        where are my models | where do models go | where are the files | where does meshnode keep models
        where does meshnode store models | in which folder are the models | which directory holds the models
        where are downloaded models | what does meshnode pull do | how do i download a model | how do i pull a model
        where do the models come from | does it use the hugging face cache | where is the cache
        what is the model cache | how do i get a model | where does it save models | where do downloads go
        how to download a model
        """),
        wordings("""
        Where are models kept? | where does meshnode store the models? | In which folder do models end up?
        where are downloaded models stored
        """),
    ),
    Lesson(
        "Run meshnode on the command line. The readme describes the installation and the first steps.",
        wordings("""
        how do i install meshnode | how to install meshnode | how do i start meshnode | how do i run meshnode
        how do i begin | how do i get started | how to start | install | how do i set up meshnode
        how can i install it | where do i start | getting started | how do i start a node | how do i launch meshnode
        how do i set it up
        """),
        wordings("""
        How do I install meshnode? | how can I get started? | How do I start meshnode?
        """),
    ),
)

HELD_OUT_OTHERWISE = wordings("""
    What is the capital of France? | Write a poem about the sea. | Who won the world cup in 1998?
    translate good morning into Spanish | What is the weather like today? | How do I bake bread?
    Explain quantum mechanics. | tell me something funny | What is 7 times 8? | Why is the sky blue?
    Write a Python function that sorts a list. | flibber dax woonti grum | asdf qwer zxcv
    What is the meaning of life? | Recommend a good book about history. | How tall is Mount Everest?
    Who wrote Hamlet? | My cat is sick, what should I do? | What is the square root of 144?
    Give me a recipe for pancakes with 3 eggs. | Is it going to rain tomorrow?
    Summarise this text: the river was quiet and the boats went home. | What is the speed of light?
    How many people live in Tokyo? | I would like to learn the guitar. | Name three kinds of trees.
    What happened in 1789? | Bonjour, comment allez-vous ? | Wie spät ist es? | SELECT name FROM users WHERE id = 7;
    The quick brown fox jumps over the lazy dog. | What should I cook for dinner tonight? | Can penguins fly?
    Plan a trip to Rome for 5 days. | What does the word ephemeral mean? | Compare apples and oranges.
    How do airplanes fly? | write a short story about a dragon | Which is faster, a horse or a car?
    What is photosynthesis?
""")
