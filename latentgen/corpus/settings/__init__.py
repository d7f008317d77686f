"""The places a scene can be set in; each function draws its backdrop and says where subjects can stand."""
